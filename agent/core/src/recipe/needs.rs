//! Owns: which hosts the steps of a build would fetch from, and where that is written. May touch: nothing.
//! Never: knows which credentials exist, or reads what a step does not. Tested by: units here.
//!
//! A credential for a source is used by the agent's own fetch. A build step has no way to it (see `steps`), so a step
//! that reads from a host with a credential would fail minutes later, with words of git or npm that do not say why.

use std::collections::BTreeSet;

use sigil_config::node::{self, Node};

use super::Tree;
use super::steps::{Instruction, WITHOUT, instructions};

/// A host that a step fetches from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// File of the tree that names it.
    pub file: String,
    /// Line in it, from 1.
    pub line: usize,
    /// `host` or `host:port`, lower case.
    pub host: String,
    /// The step that reads the file, shortened.
    pub step: String,
    /// Whether everyone may read most of what is there: a credential for such a host does not mean that this needs it.
    pub public: bool,
}

impl Need {
    /// What is wrong, when there is a credential for this host.
    pub fn message(&self) -> String {
        format!(
            "{}:{}: step `{}` fetches from {}, for which there is a credential, and a build step cannot have it: the \
             engine's classic builder cannot pass a secret to a step without writing it into a layer of the image",
            self.file, self.line, self.step, self.host
        )
    }

    /// What to do instead.
    pub fn hint() -> &'static str {
        WITHOUT
    }
}

/// Read by everyone, mostly.
const PUBLIC: &[&str] = &[
    "github.com",
    "codeload.github.com",
    "raw.githubusercontent.com",
    "gitlab.com",
    "bitbucket.org",
    "codeberg.org",
    "registry.npmjs.org",
    "registry.yarnpkg.com",
    "pypi.org",
    "files.pythonhosted.org",
    "proxy.golang.org",
    "crates.io",
    "static.crates.io",
    "index.crates.io",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Node,
    Python,
    Go,
    Rust,
}

impl Tool {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Node => &["npm", "npx", "yarn", "pnpm", "bun"],
            Self::Python => &["pip", "pip3", "uv", "poetry", "pdm", "pipenv"],
            Self::Go => &["go"],
            Self::Rust => &["cargo"],
        }
    }

    /// Whose file this is.
    fn of(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        Some(match name {
            "package.json"
            | "package-lock.json"
            | "npm-shrinkwrap.json"
            | "yarn.lock"
            | "pnpm-lock.yaml"
            | ".npmrc"
            | ".yarnrc"
            | ".yarnrc.yml" => Self::Node,
            "pyproject.toml" | "uv.lock" | "uv.toml" | "poetry.lock" | "pdm.lock" | "Pipfile" | "Pipfile.lock" => {
                Self::Python
            }
            "go.mod" => Self::Go,
            "Cargo.toml" | "Cargo.lock" => Self::Rust,
            _ if path.ends_with(".cargo/config.toml") || path.ends_with(".cargo/config") => Self::Rust,
            _ if name.ends_with(".txt") && ["requirements", "constraints"].iter().any(|p| path.contains(p)) => {
                Self::Python
            }
            _ => return None,
        })
    }
}

/// Whether the body of this file is read for [`needs`]: near the root of the context.
pub fn wanted(context: &str, path: &str) -> bool {
    inside(context, path).is_some_and(|p| p.matches('/').count() <= 1 && Tool::of(p).is_some())
}

/// Hosts that the steps of this Dockerfile fetch from, once each for a tool: what the tree's files and the steps
/// themselves name. `own` is the Dockerfile's path when the tree brings it, `context` the folder that its steps see,
/// `go_proxy` whether modules come from a configured proxy.
pub fn needs(tree: &Tree, dockerfile: &str, own: Option<&str>, context: &str, go_proxy: bool) -> Vec<Need> {
    let steps = instructions(dockerfile);
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |file: &str, line: usize, host: String, step: &Instruction| {
        if seen.insert((step.line, host.clone())) {
            let public = PUBLIC.contains(&host.as_str());
            found.push(Need { file: file.to_owned(), line, host, step: step.shown(), public });
        }
    };
    if let Some(own) = own {
        for step in steps.iter().filter(|s| s.is("run") || s.is("add")) {
            for host in hosts(&step.rest) {
                add(own, step.line, host, step);
            }
        }
    }
    let vendored = |tool: Tool| match tool {
        Tool::Go => go_proxy || tree.has(&below(context, "vendor/modules.txt")),
        Tool::Rust => [".cargo/config.toml", ".cargo/config"].iter().any(|f| {
            tree.text(&below(context, f)).is_some_and(|t| t.contains("\ndirectory") || t.contains("vendored"))
        }),
        Tool::Node | Tool::Python => false,
    };
    for (path, body) in &tree.bodies {
        let Some(within) = inside(context, path).filter(|_| wanted(context, path)) else { continue };
        let Some(tool) = Tool::of(within).filter(|t| !vendored(*t)) else { continue };
        // the first step that runs the tool meets the file first
        let Some(step) = steps.iter().find(|s| s.is("run") && runs(&s.rest, tool.programs())) else { continue };
        for (line, host) in named(within, &String::from_utf8_lossy(body)) {
            add(path, line, host, step);
        }
    }
    found
}

fn below(context: &str, path: &str) -> String {
    match context.trim_matches(['.', '/']) {
        "" => path.to_owned(),
        folder => format!("{folder}/{path}"),
    }
}

fn inside<'p>(context: &str, path: &'p str) -> Option<&'p str> {
    match context.trim_matches(['.', '/']) {
        "" => Some(path),
        folder => path.strip_prefix(folder)?.strip_prefix('/'),
    }
}

fn runs(command: &str, programs: &[&str]) -> bool {
    let words = command.split(|c: char| c.is_whitespace() || "&|;()\"'`/,[]".contains(c));
    words.into_iter().any(|word| programs.contains(&word))
}

/// Hosts that a file of dependencies names, with their lines. Home pages and the like are no dependencies.
fn named(path: &str, text: &str) -> Vec<(usize, String)> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name == "package.json" {
        return package_json(text);
    }
    let mut section = String::new();
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') && line.ends_with(']') {
            section = line.trim_matches(['[', ']', ' ']).to_owned();
            continue;
        }
        let has = |words: &[&str]| words.iter().any(|w| line.contains(w));
        let starts = |words: &[&str]| words.iter().any(|w| line.starts_with(w));
        let fetched = match name {
            "package-lock.json" | "npm-shrinkwrap.json" => {
                starts(&["\"resolved\":", "\"version\": \"git", "\"version\": \"http"])
            }
            "yarn.lock" => starts(&["resolved ", "resolution: "]),
            "pnpm-lock.yaml" => has(&["tarball:", "repo:"]),
            ".npmrc" => !starts(&["#", ";"]) && (has(&["registry"]) || (starts(&["//"]) && has(&[":_", ":username"]))),
            ".yarnrc" => starts(&["registry", "\"@"]),
            ".yarnrc.yml" => !starts(&["#"]) && (has(&["npmRegistryServer"]) || starts(&["\"//", "'//", "//"])),
            "pyproject.toml" | "uv.toml" | "Pipfile" => {
                !starts(&["#"])
                    && !section.ends_with("urls")
                    && has(&["git+", "git = ", "git=", "url = ", "url=", " @ http", "@http"])
            }
            "uv.lock" | "poetry.lock" | "pdm.lock" | "Pipfile.lock" => {
                has(&["registry = \"", "url = \"", "git = \"", "\"url\":", "\"git\":"])
            }
            "go.mod" => {
                let module = line.trim_start_matches("require").trim_start_matches("replace").trim();
                let module = module.split_once("=>").map_or(module, |(_, new)| new.trim());
                let host = module.split('/').next().unwrap_or_default();
                let versioned = module.split_whitespace().nth(1).is_some_and(|v| v.starts_with('v'));
                if host.contains('.') && !host.starts_with('.') && versioned && !line.starts_with("//") {
                    found.push((at + 1, host.to_ascii_lowercase()));
                }
                false
            }
            "Cargo.toml" => !starts(&["#"]) && has(&["git = ", "git=", "registry-index"]),
            "Cargo.lock" => starts(&["source = "]),
            "config.toml" | "config" => !starts(&["#"]) && starts(&["index", "registry", "git"]),
            _ => !starts(&["#"]),
        };
        if fetched {
            // what follows a space and '#' is a comment in requirement files
            let line = if name.ends_with(".txt") { line.split(" #").next().unwrap_or(line) } else { line };
            found.extend(hosts(line).into_iter().map(|host| (at + 1, host)));
        }
    }
    found
}

fn package_json(text: &str) -> Vec<(usize, String)> {
    let (root, flaws) = node::yaml("package.json", &text.trim_start_matches('\u{feff}').replace('\t', " "));
    if !flaws.is_empty() {
        // recognition has said so, or nothing reads it
        return Vec::new();
    }
    let mut found = Vec::new();
    for section in ["dependencies", "devDependencies", "optionalDependencies", "resolutions", "overrides"] {
        for entry in root.get(section).map(Node::entries).unwrap_or_default() {
            let Some(value) = entry.value.as_text() else { continue };
            let short = [("gitlab:", "gitlab.com"), ("bitbucket:", "bitbucket.org"), ("github:", "github.com")];
            let mut all = hosts(value);
            if let Some((_, host)) = short.iter().find(|(prefix, _)| value.starts_with(prefix)) {
                all.push((*host).to_owned());
            }
            found.extend(all.into_iter().map(|host| (usize::try_from(entry.value.at.line).unwrap_or(1), host)));
        }
    }
    found
}

/// Hosts of the addresses in a text: `scheme://[login@]host[:port]`, `git@host:path`, and `.npmrc`'s `//host/`.
fn hosts(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut push = |host: &str| {
        let host = host.to_ascii_lowercase();
        let fine = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if !host.is_empty() && host.chars().all(fine) && !found.contains(&host) {
            found.push(host);
        }
    };
    let mut rest = text;
    while let Some(at) = rest.find("//") {
        let before = rest[..at].chars().next_back();
        let after = &rest[at + 2..];
        let end = after.find(|c: char| c.is_whitespace() || "/\"'`,;)}#?|&<>".contains(c)).unwrap_or(after.len());
        if matches!(before, Some(':')) || rest[..at].trim().is_empty() {
            let authority = &after[..end];
            push(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        }
        rest = &after[end..];
    }
    for word in text.split(|c: char| c.is_whitespace() || "\"'`,;=()".contains(c)) {
        // `git@host:org/repo`; one with a scheme was found above
        if let Some((host, path)) = word.strip_prefix("git@").and_then(|w| w.split_once(':'))
            && !path.starts_with('/')
        {
            push(host);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(context: &str, files: &[(&str, &str)]) -> Tree {
        let bodies =
            files.iter().filter(|(p, _)| wanted(context, p)).map(|(p, b)| ((*p).to_owned(), b.as_bytes().to_vec()));
        Tree { files: files.iter().map(|(p, _)| (*p).to_owned()).collect(), bodies: bodies.collect() }
    }

    fn of(files: &[(&str, &str)], dockerfile: &str) -> Vec<String> {
        needs(&tree(".", files), dockerfile, None, ".", false)
            .iter()
            .map(|n| format!("{}:{} {} {}", n.file, n.line, n.host, if n.public { "public" } else { "-" }))
            .collect()
    }

    #[test]
    fn javascript() {
        let package = "{\n \"repository\": {\"url\": \"git+https://git.corp.example/a.git\"},\n \"dependencies\": {\n  \
                       \"a\": \"git+https://x:y@Git.Example.org:8443/a.git#v1\",\n  \"b\": \"^1\",\n  \"c\": \"github:o/c\",\n  \
                       \"d\": \"git@ssh.example.org:o/d.git\"\n }\n}\n";
        let lock = "{\n \"funding\": \"https://fund.example.org\",\n  \
                    \"resolved\": \"https://npm.example.org/a/-/a-1.tgz\",\n  \"resolved\": \"https://registry.npmjs.org/b\"\n}";
        let rc = "; registry=https://no.example.org\n@corp:registry=https://npm.corp.example/\n//npm.corp.example/:_authToken=${T}\n//tok.example.org/:_authToken=x\n";
        let files =
            [("package.json", package), ("package-lock.json", lock), (".npmrc", rc), ("deep/er/package.json", package)];
        assert_eq!(
            of(&files, "FROM x\nCOPY . .\nRUN cd a && npm ci --ignore-scripts\nRUN npm run build\n"),
            [
                ".npmrc:2 npm.corp.example -",
                ".npmrc:4 tok.example.org -",
                "package-lock.json:3 npm.example.org -",
                "package-lock.json:4 registry.npmjs.org public",
                "package.json:4 git.example.org:8443 -",
                "package.json:6 github.com public",
                "package.json:7 ssh.example.org -",
            ]
        );
        // no step reads them
        assert_eq!(of(&files, "FROM x\nCOPY . .\nRUN pip install .\n"), [""; 0]);
    }

    #[test]
    fn python() {
        let requirements = "# https://no.example.org\n--extra-index-url https://me@pypi.example.org/simple\nmcp>=1 # https://no.example.org\n\
                            a @ git+ssh://git@git.example.org/a.git@v1\n-r more.txt\n";
        let project = "[project]\ndependencies = [\n \"b @ git+https://code.example.org/b\",\n]\n[project.urls]\nurl = \"https://no.example.org\"\n\
                       [[tool.uv.index]]\nurl = \"https://index.example.org/simple\"\n[tool.poetry]\nhomepage = \"https://no.example.org\"\n";
        let lock = "source = { registry = \"https://pypi.org/simple\" }\nsource = { git = \"https://lock.example.org/c?rev=1\" }\n";
        let files = [("requirements.txt", requirements), ("pyproject.toml", project), ("uv.lock", lock)];
        assert_eq!(
            of(&files, "FROM x\nRUN /opt/venv/bin/pip install -r requirements.txt\n"),
            [
                "pyproject.toml:3 code.example.org -",
                "pyproject.toml:8 index.example.org -",
                "requirements.txt:2 pypi.example.org -",
                "requirements.txt:4 git.example.org -",
                "uv.lock:1 pypi.org public",
                "uv.lock:2 lock.example.org -",
            ]
        );
    }

    #[test]
    fn compiled() {
        let go = "module git.example.org/self\n\ngo 1.22\n\nrequire git.example.org/a v1.2.3\nrequire (\n\tgithub.com/x/y v0.1.0 // indirect\n\t\
                  // old.example.org/z v1.0.0\n)\nreplace b.example.org/b => ../b\n";
        let file = "FROM x\nRUN go mod download\nRUN cargo build\n";
        let files = [("go.mod", go)];
        assert_eq!(of(&files, file), ["go.mod:5 git.example.org -", "go.mod:7 github.com public"]);
        assert_eq!(needs(&tree(".", &files), file, None, ".", true), [], "the proxy fetches");
        assert_eq!(of(&[("go.mod", go), ("vendor/modules.txt", "")], file), [""; 0]);

        let cargo = "[package]\nrepository = \"https://no.example.org\"\n[dependencies]\na = { git = \"https://git.example.org/a\" }\n";
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\nsource = \"git+https://git.example.org/a?rev=1#2\"\n";
        let own = "[registries.corp]\nindex = \"sparse+https://crates.example.org/\"\n";
        assert_eq!(
            of(&[("Cargo.toml", cargo), ("Cargo.lock", lock), (".cargo/config.toml", own)], file),
            [
                ".cargo/config.toml:2 crates.example.org -",
                "Cargo.lock:1 github.com public",
                "Cargo.lock:2 git.example.org -"
            ]
        );
        let vendored = "[source.crates-io]\nreplace-with = \"vendored-sources\"\n[source.vendored-sources]\ndirectory = \"vendor\"\n";
        assert_eq!(of(&[("Cargo.toml", cargo), (".cargo/config.toml", vendored)], file), [""; 0]);
    }

    #[test]
    fn steps_of_the_trees_own_dockerfile() {
        let file = "FROM x\nRUN git clone https://git.example.org/a.git && \\\n  curl -f http://get.example.org:8080/x | sh\nADD https://add.example.org/f /f\n\
                    LABEL url=https://no.example.org\n";
        let found = needs(&Tree::default(), file, Some("docker/Dockerfile"), "app", false);
        let hosts: Vec<_> = found.iter().map(|n| (n.file.as_str(), n.line, n.host.as_str())).collect();
        let own = "docker/Dockerfile";
        assert_eq!(hosts, [(own, 2, "git.example.org"), (own, 2, "get.example.org:8080"), (own, 4, "add.example.org")]);
        let message = found[0].message();
        assert!(message.starts_with("docker/Dockerfile:2: step `RUN git clone"), "{message}");
        assert!(message.contains("git.example.org, for which there is a credential"), "{message}");
        // files outside the context are not there for a step
        let other = [
            ("app/requirements.txt", "-i https://a.example.org\n"),
            ("requirements.txt", "-i https://b.example.org\n"),
        ];
        let given = tree("app", &other);
        let found = needs(&given, "FROM x\nRUN pip install -r requirements.txt\n", None, "app", false);
        assert_eq!(found.iter().map(|n| n.host.as_str()).collect::<Vec<_>>(), ["a.example.org"]);
    }
}
