//! Owns: the generated Dockerfile. May touch: nothing. Never: writes a secret, or a value of a build argument, into it.
//! Tested by: snapshots here, `tests/docker` (real builds).
//!
//! Written for the classic builder (no `RUN --mount`, no here-documents) and for `sh`, so that engines of 2020 and
//! bases without bash work. Three stages: `base` has what both others need, `build` makes, the last one runs.
//! Manifests are copied before sources: a change of sources does not install dependencies again.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use sigil_config::manifest::Runtime;

use super::compiled::{self, PROGRAM};
use super::javascript::{self, APP, INSTALLED, Manager, Package};
use super::python::{self, Install, Project, VENV};
use super::{BuildSettings, EXTRA_CA, Origin, Recipe, Tree};

/// The user that servers run as; also owner of their volumes.
pub const USER: &str = "10001:10001";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const CA: &str = "/usr/local/share/ca-certificates/sigil-extra.crt";

/// Build arguments that engines know without an `ARG`, and keep out of image history.
const PREDEFINED: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The official image for a runtime, used when neither the configuration nor the engine has one. Empty for `container`.
pub fn default_base_image(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Node => "node:22-bookworm-slim",
        Runtime::Python => "python:3.12-slim-bookworm",
        Runtime::Go => "golang:1.25-bookworm",
        Runtime::Rust => "rust:1-bookworm",
        Runtime::Container => "",
    }
}

/// The Dockerfile for a recipe without one of its own; for one with its own, that file's text as far as it is known.
/// Equal input gives equal text, so it can be part of a content digest.
pub fn dockerfile(recipe: &Recipe, tree: &Tree, settings: &BuildSettings) -> String {
    if let Some(path) = &recipe.dockerfile {
        return tree.text(path).unwrap_or_else(|| format!("# {path} of the source tree, as it is\n"));
    }
    let mut file = File { out: String::new(), recipe, settings };
    file.base();
    match recipe.runtime {
        _ if recipe.origin == Origin::Bundle => file.bundle(),
        Runtime::Node => file.node(tree),
        Runtime::Python => file.python(tree),
        Runtime::Go => file.go(tree),
        Runtime::Rust => file.rust(tree),
        // an image as a source: nothing to make
        Runtime::Container => {}
    }
    file.out
}

struct File<'a> {
    out: String,
    recipe: &'a Recipe,
    settings: &'a BuildSettings,
}

/// A word for `sh`.
fn sh(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:@=+,%[]".contains(c));
    if plain && !text.contains('[') { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A value of an `ENV` instruction: quoted, nothing expanded.
fn value(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$").replace(['\n', '\r'], " ");
    format!("\"{escaped}\"")
}

/// An address without a user and password in it: what is written here stays in the image's history.
fn bare(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.find('/').unwrap_or(rest.len());
            let host = rest[..authority].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[host..])
        }
        None => url.to_owned(),
    }
}

/// The exec form of a command line.
fn exec(command: &[String]) -> String {
    serde_json::Value::from(command.to_vec()).to_string()
}

impl File<'_> {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn env(&mut self, pairs: &[(&str, &str)]) {
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={}", value(v))).collect();
        let text = format!("ENV {}", pairs.join(" \\\n    "));
        self.line(&text);
    }

    /// Names of build arguments; their values are given to the engine.
    fn args(&mut self) {
        let names: BTreeSet<&String> =
            self.settings.args.keys().chain(self.recipe.manifest.build.args.keys()).collect();
        let names: Vec<String> = names
            .into_iter()
            .filter(|n| sigil_config::manifest::is_env_name(n) && !PREDEFINED.contains(&n.to_uppercase().as_str()))
            .map(|n| format!("ARG {n}"))
            .collect();
        for name in names {
            self.line(&name);
        }
    }

    /// What both other stages need: trust, packages, the user.
    fn base(&mut self) {
        let own = self.recipe.manifest.build.base_image.as_deref().unwrap_or_default();
        let configured = [own, self.settings.base_image.as_str(), default_base_image(self.recipe.runtime)];
        let image = configured.into_iter().find(|i| !i.is_empty()).unwrap_or("scratch");
        let _ = writeln!(self.out, "# made by sigil for {}", self.recipe.runtime.as_str());
        let _ = writeln!(self.out, "FROM {image} AS base\nUSER 0");
        self.args();
        if self.settings.extra_ca {
            let _ = writeln!(self.out, "COPY {EXTRA_CA} {CA}\nRUN mkdir -p /etc/ssl/certs && cat {CA} >> {BUNDLE}");
            self.env(&[
                ("NODE_EXTRA_CA_CERTS", CA),
                ("SSL_CERT_FILE", BUNDLE),
                ("PIP_CERT", BUNDLE),
                ("REQUESTS_CA_BUNDLE", BUNDLE),
                ("CARGO_HTTP_CAINFO", BUNDLE),
                ("GIT_SSL_CAINFO", BUNDLE),
            ]);
        }
        let packages = &self.recipe.manifest.build.packages;
        if !packages.is_empty() {
            if !self.settings.apt_mirror.is_empty() {
                let mirror = bare(self.settings.apt_mirror.trim_end_matches('/'));
                let sed = format!(
                    "s|https\\?://[^ ]*/debian-security/\\?|{mirror}-security|; t; s|https\\?://[^ ]*/debian/\\?|{mirror}|"
                );
                let _ = writeln!(
                    self.out,
                    "RUN for f in /etc/apt/sources.list /etc/apt/sources.list.d/*; do \\\n    \
                     [ ! -f \"$f\" ] || sed -i {} \"$f\"; done",
                    sh(&sed)
                );
            }
            let words: Vec<String> = packages.iter().map(|p| sh(p)).collect();
            let _ = writeln!(
                self.out,
                "RUN apt-get update \\\n    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {} \\\n    \
                 && rm -rf /var/lib/apt/lists/*",
                words.join(" ")
            );
        }
        // programs ask for the name and home of their user, also when it is only a number to the engine
        self.line(
            "RUN (grep -q '^app:' /etc/passwd || echo 'app:x:10001:10001:app:/home/app:/bin/sh' >> /etc/passwd) \\\n    \
             && (grep -q '^app:' /etc/group || echo 'app:x:10001:' >> /etc/group) \\\n    \
             && mkdir -p /home/app && chown 10001:10001 /home/app",
        );
    }

    fn stage(&mut self, name: &str) {
        let _ = writeln!(self.out, "\nFROM base AS {name}");
        self.args();
    }

    /// The end of the last stage: user, port, command.
    fn end(&mut self, env: &[(&str, &str)]) {
        let port = self.recipe.port.to_string();
        let mut all = vec![("HOME", "/home/app")];
        all.extend(env);
        // a server that may turn out to speak HTTP is told its port too
        let stdio = self.recipe.transport.as_deref() == Some("stdio");
        if !stdio {
            all.push(("PORT", &port));
        }
        self.env(&all);
        if !stdio && self.recipe.transport.is_some() {
            let _ = writeln!(self.out, "EXPOSE {port}");
        }
        let _ = writeln!(self.out, "USER {USER}");
        let entry = exec(&self.recipe.command);
        let _ = writeln!(self.out, "ENTRYPOINT {entry}");
    }

    // --- bundles ----------------------------------------------------------------------------------------------------

    /// What it needs is in it: nothing is installed.
    fn bundle(&mut self) {
        self.stage("build");
        let _ = writeln!(self.out, "WORKDIR {APP}\nCOPY . .\nRUN rm -rf .sigil && chmod -R a+rX {APP}");
        self.line("\nFROM base");
        let _ = writeln!(self.out, "COPY --from=build {APP} {APP}\nWORKDIR {APP}");
        if self.recipe.runtime == Runtime::Node {
            self.end(&[("NODE_ENV", "production")]);
        } else {
            self.end(&[("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
        }
    }

    // --- node -------------------------------------------------------------------------------------------------------

    fn node(&mut self, tree: &Tree) {
        self.stage("build");
        let mut env = vec![
            ("npm_config_cache", "/tmp/npm"),
            ("npm_config_update_notifier", "false"),
            ("npm_config_fund", "false"),
            ("npm_config_audit", "false"),
        ];
        let registry = bare(&self.settings.npm_registry);
        if !registry.is_empty() {
            // npm, pnpm and Yarn 1 read the first, Yarn 2 and later the second
            env.push(("npm_config_registry", &registry));
            env.push(("YARN_NPM_REGISTRY_SERVER", &registry));
        }
        self.env(&env);
        let run =
            [("NODE_ENV", "production"), ("npm_config_cache", "/tmp/npm"), ("npm_config_update_notifier", "false")];
        if let Origin::Npm { name, version } = &self.recipe.origin {
            let _ = writeln!(self.out, "WORKDIR {INSTALLED}");
            let package = sh(&format!("{name}@{version}"));
            let _ = writeln!(
                self.out,
                "RUN npm install --omit=dev --no-package-lock --prefix {INSTALLED} {package} \\\n    \
                 && chmod -R a+rX {INSTALLED} && rm -rf /tmp/npm"
            );
            self.line("\nFROM base");
            let _ = writeln!(self.out, "COPY --from=build {INSTALLED} {INSTALLED}\nWORKDIR {INSTALLED}");
            self.end(&run);
            return;
        }
        let _ = writeln!(self.out, "WORKDIR {APP}");
        // what cannot be read was refused when the tree was recognised
        match Package::read(tree).ok().flatten() {
            Some((_, package)) => self.install_node(tree, &package),
            None => self.line("COPY . ."),
        }
        let _ = writeln!(self.out, "RUN rm -rf .sigil && chmod -R a+rX {APP}");
        self.line("\nFROM base");
        let _ = writeln!(self.out, "COPY --from=build {APP} {APP}\nWORKDIR {APP}");
        self.end(&run);
    }

    fn install_node(&mut self, tree: &Tree, package: &Package) {
        let manager = Manager::of(tree, package);
        let whole = package.needs_tree() || tree.has("pnpm-workspace.yaml");
        if whole {
            self.line("COPY . .");
        } else {
            let known = [
                "package.json",
                "package-lock.json",
                "npm-shrinkwrap.json",
                "pnpm-lock.yaml",
                "yarn.lock",
                ".npmrc",
                ".yarnrc",
                ".yarnrc.yml",
                ".pnpmfile.cjs",
            ];
            let files: Vec<&str> = known.into_iter().filter(|f| tree.has(f)).collect();
            let _ = writeln!(self.out, "COPY {} ./", files.join(" "));
            // Yarn's own program and plugins may lie in the tree
            for folder in [".yarn", "patches"] {
                if tree.files.iter().any(|f| f.starts_with(&format!("{folder}/"))) {
                    let _ = writeln!(self.out, "COPY {folder} ./{folder}");
                }
            }
        }
        // scripts wait until the sources are there: 'prepare' and 'postinstall' often build
        let (install, scripts, prune) = match &manager {
            Manager::Npm { locked: true } => (
                "npm ci --include=dev --ignore-scripts".to_owned(),
                "npm rebuild",
                "npm prune --omit=dev --ignore-scripts".to_owned(),
            ),
            Manager::Npm { locked: false } => (
                "npm install --include=dev --ignore-scripts".to_owned(),
                "npm rebuild",
                "npm prune --omit=dev --ignore-scripts".to_owned(),
            ),
            Manager::Pnpm { with } => {
                let pnpm = format!("npx --yes {with}");
                // for every step: pnpm refuses modules that came from another store
                self.env(&[("npm_config_store_dir", "/tmp/pnpm")]);
                (
                    format!("{pnpm} install --frozen-lockfile --prod=false --ignore-scripts"),
                    "npm rebuild",
                    format!("CI=true {pnpm} install --frozen-lockfile --prod --ignore-scripts --offline"),
                )
            }
            Manager::Yarn { with } => {
                let yarn = format!("npx --yes {with}");
                (
                    format!(
                        "{yarn} install --frozen-lockfile --production=false --ignore-scripts --non-interactive --cache-folder /tmp/yarn"
                    ),
                    "npm rebuild",
                    format!(
                        "{yarn} install --frozen-lockfile --production --ignore-scripts --offline --non-interactive --cache-folder /tmp/yarn"
                    ),
                )
            }
            Manager::Berry { with } => {
                self.env(&[
                    ("YARN_NODE_LINKER", "node-modules"),
                    ("YARN_ENABLE_GLOBAL_CACHE", "true"),
                    ("YARN_GLOBAL_FOLDER", "/tmp/yarn"),
                    ("YARN_ENABLE_TELEMETRY", "0"),
                ]);
                let yarn = format!("npx --yes -p {with} yarn");
                (
                    format!("{yarn} install --immutable --mode=skip-build"),
                    "npm rebuild",
                    format!("{yarn} workspaces focus --production --all"),
                )
            }
        };
        let _ = writeln!(self.out, "RUN {install}");
        if !whole {
            self.line("COPY . .");
        }
        // native modules of pnpm are built by pnpm, whose layout npm does not know
        let scripts = match &manager {
            Manager::Pnpm { with } => format!("npx --yes {with} rebuild"),
            Manager::Berry { with } => format!("npx --yes -p {with} yarn rebuild"),
            _ => format!("{scripts} --foreground-scripts"),
        };
        if package.has_dependencies() {
            let _ = writeln!(self.out, "RUN {scripts}");
        }
        let mut steps: Vec<String> = Vec::new();
        if package.script("postinstall").is_some() {
            steps.push("npm run postinstall".into());
        }
        steps.extend(javascript::build_step(tree, package));
        for step in steps {
            let _ = writeln!(self.out, "RUN {step}");
        }
        if package.has_dependencies() && !javascript::keeps_dev(&self.recipe.command) {
            let _ = writeln!(self.out, "RUN {prune}");
        }
    }

    // --- python -----------------------------------------------------------------------------------------------------

    fn python(&mut self, tree: &Tree) {
        self.stage("build");
        let mut env =
            vec![("PIP_DISABLE_PIP_VERSION_CHECK", "1"), ("PIP_NO_CACHE_DIR", "1"), ("PIP_ROOT_USER_ACTION", "ignore")];
        let index = bare(&self.settings.pypi_index);
        if !index.is_empty() {
            env.push(("PIP_INDEX_URL", &index));
            env.push(("UV_DEFAULT_INDEX", &index));
        }
        self.env(&env);
        let _ = writeln!(self.out, "RUN python3 -m venv {VENV}");
        let pip = format!("{VENV}/bin/pip install");
        let origin = self.recipe.origin.clone();
        if let Origin::Pypi { name, version } = &origin {
            let _ = writeln!(self.out, "RUN {pip} {}", sh(&format!("{name}=={version}")));
        } else {
            let _ = writeln!(self.out, "WORKDIR {APP}");
            // what cannot be read was refused when the tree was recognised
            let plan = Project::read(tree, &origin).map_or(Install::Nothing, |p| python::install(tree, &p));
            self.install_python(tree, &plan, &pip);
            let _ = writeln!(self.out, "RUN rm -rf .sigil && chmod -R a+rX {APP}");
        }
        let _ = writeln!(self.out, "RUN chmod -R a+rX {VENV}");
        self.line("\nFROM base");
        let _ = writeln!(self.out, "COPY --from=build {VENV} {VENV}");
        if origin == Origin::Tree {
            let _ = writeln!(self.out, "COPY --from=build {APP} {APP}\nWORKDIR {APP}");
        } else {
            self.line("WORKDIR /home/app");
        }
        // its own line: here the base image's own PATH is meant to be expanded
        let _ = writeln!(self.out, "ENV PATH=\"{VENV}/bin:$PATH\"");
        self.end(&[("VIRTUAL_ENV", VENV), ("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
    }

    fn install_python(&mut self, tree: &Tree, plan: &Install, pip: &str) {
        match plan {
            Install::Uv { project } => {
                // uv lives beside the environment, not in it
                self.line("RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install uv");
                let mirrored = !self.settings.pypi_index.is_empty();
                self.env(&[
                    ("UV_PROJECT_ENVIRONMENT", VENV),
                    ("UV_PYTHON_DOWNLOADS", "never"),
                    ("UV_LINK_MODE", "copy"),
                    ("UV_CACHE_DIR", "/tmp/uv"),
                ]);
                let whole = tree.files.iter().any(|f| f != "pyproject.toml" && f.ends_with("/pyproject.toml"));
                if whole {
                    self.line("COPY . .");
                } else {
                    self.line("COPY pyproject.toml uv.lock ./");
                }
                if mirrored {
                    // the lock file holds the addresses of the default index: take its versions and hashes elsewhere
                    let _ = writeln!(
                        self.out,
                        "RUN /opt/uv/bin/uv export --frozen --no-dev --no-emit-project --format requirements-txt -o /tmp/locked.txt \\\n    \
                         && /opt/uv/bin/uv pip install --python {VENV}/bin/python -r /tmp/locked.txt"
                    );
                } else {
                    self.line("RUN /opt/uv/bin/uv sync --frozen --no-dev --no-install-project");
                }
                if !whole {
                    self.line("COPY . .");
                }
                if *project {
                    let _ = writeln!(self.out, "RUN /opt/uv/bin/uv pip install --python {VENV}/bin/python --no-deps .");
                }
            }
            Install::Project { requirements } => {
                if *requirements {
                    let _ = writeln!(self.out, "COPY requirements.txt ./\nRUN {pip} -r requirements.txt");
                }
                let _ = writeln!(self.out, "COPY . .\nRUN {pip} .");
            }
            Install::Requirements => {
                let _ = writeln!(self.out, "COPY requirements.txt ./\nRUN {pip} -r requirements.txt\nCOPY . .");
            }
            Install::Listed(listed) => {
                let words: Vec<String> = listed.iter().filter(|l| python::is_requirement(l)).map(|l| sh(l)).collect();
                let _ = writeln!(self.out, "RUN {pip} {}\nCOPY . .", words.join(" "));
            }
            Install::Nothing => self.line("COPY . ."),
        }
    }

    // --- go and rust ------------------------------------------------------------------------------------------------

    fn go(&mut self, tree: &Tree) {
        self.stage("build");
        let mut env = vec![("CGO_ENABLED", "0"), ("GOCACHE", "/tmp/go-build"), ("GOMODCACHE", "/tmp/go-mod")];
        let proxy = self.settings.go_proxy.split(',').map(bare).collect::<Vec<_>>().join(",");
        if !proxy.is_empty() {
            env.push(("GOPROXY", &proxy));
        }
        self.env(&env);
        self.line("WORKDIR /src");
        let vendored = tree.has("vendor/modules.txt");
        let local = tree.text("go.mod").is_some_and(|t| t.lines().any(|l| l.contains("=> .") || l.contains("=> /")));
        let sum = if tree.has("go.sum") { " go.sum" } else { "" };
        if vendored || local || tree.has("go.work") {
            self.line("COPY . .");
        } else {
            let _ = writeln!(self.out, "COPY go.mod{sum} ./\nRUN go mod download\nCOPY . .");
        }
        let package = compiled::go_package(tree, &self.recipe.manifest).unwrap_or_else(|_| ".".into());
        // without go.sum nothing can be checked: it is made here, once
        let tidy = if sum.is_empty() && !vendored { "go mod tidy && " } else { "" };
        let _ = writeln!(self.out, "RUN {tidy}go build -trimpath -ldflags='-s -w' -o {PROGRAM} {}", sh(&package));
        self.program();
    }

    fn rust(&mut self, tree: &Tree) {
        self.stage("build");
        self.env(&[("CARGO_TERM_COLOR", "never"), ("CARGO_TARGET_DIR", "/tmp/target"), ("CARGO_NET_RETRY", "3")]);
        self.line("WORKDIR /src");
        let locked = if tree.has("Cargo.lock") { " --locked" } else { "" };
        let mut cargo = "cargo".to_owned();
        let registry = bare(&self.settings.cargo_registry);
        if !registry.is_empty() {
            let replace = sh("source.crates-io.replace-with=\"mirror\"");
            let mirror = sh(&format!("source.mirror.registry=\"{registry}\""));
            cargo = format!("cargo --config {replace} --config {mirror}");
        }
        let target = compiled::rust_crate(tree, &self.recipe.manifest).ok();
        let bin = target.as_ref().map(|t| t.bin.clone()).unwrap_or_default();
        let package = target.and_then(|t| t.package).map(|p| format!(" -p {}", sh(&p))).unwrap_or_default();
        // a single crate of the plain layout: its dependencies are fetched before its sources are looked at
        let plain = !locked.is_empty()
            && tree.has("src/main.rs")
            && !tree.has("build.rs")
            && !tree.files.iter().any(|f| f.ends_with("/Cargo.toml"))
            && tree
                .text("Cargo.toml")
                .is_some_and(|t| !t.contains("[[") && !t.contains("[lib]") && !t.contains("path"));
        if plain {
            let _ = writeln!(
                self.out,
                "COPY Cargo.toml Cargo.lock ./\n\
                 RUN mkdir src && echo 'fn main() {{}}' > src/main.rs && {cargo} fetch --locked"
            );
        }
        let _ = writeln!(
            self.out,
            "COPY . .\nRUN {cargo} build --release{locked}{package} --bin {} \\\n    && cp /tmp/target/release/{} {PROGRAM}",
            sh(&bin),
            sh(&bin)
        );
        self.program();
    }

    /// The last stage of a compiled server: a static one needs nothing but certificates.
    fn program(&mut self) {
        let alone = self.recipe.runtime == Runtime::Go && self.recipe.manifest.build.packages.is_empty();
        if alone {
            let _ = writeln!(self.out, "\nFROM scratch\nCOPY --from=build {BUNDLE} {BUNDLE}");
        } else {
            self.line("\nFROM base");
        }
        let _ = writeln!(self.out, "COPY --from=build {PROGRAM} {PROGRAM}\nWORKDIR /");
        if alone {
            self.end(&[("SSL_CERT_FILE", BUNDLE)]);
        } else {
            self.end(&[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::recognise;
    use super::super::tests::tree;
    use super::*;

    fn made(files: &[(&str, &str)], origin: Origin, settings: &BuildSettings) -> String {
        let tree = tree(files);
        let recipe = recognise(&tree, origin, None).unwrap_or_else(|e| panic!("{e}"));
        dockerfile(&recipe, &tree, settings)
    }

    fn plain(files: &[(&str, &str)]) -> String {
        made(files, Origin::Tree, &BuildSettings::default())
    }

    fn full() -> BuildSettings {
        BuildSettings {
            base_image: "sigil-base/any:1".into(),
            npm_registry: "https://me:hunter2@npm.example.org/".into(),
            pypi_index: "https://pypi.example.org/simple".into(),
            go_proxy: "https://go.example.org".into(),
            cargo_registry: "sparse+https://crates.example.org/".into(),
            apt_mirror: "http://deb.example.org/debian/".into(),
            extra_ca: true,
            args: [("VARIANT", "small"), ("http_proxy", "http://user:hunter2@p:1")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
        }
    }

    const TS: &str = r#"{"name":"w","version":"1.0.0","bin":"dist/i.js","scripts":{"build":"tsc"},
        "dependencies":{"@modelcontextprotocol/sdk":"^1"},"devDependencies":{"typescript":"5"}}"#;
    const PY: &str =
        "[build-system]\nrequires=['hatchling']\n[project]\nname='w'\nscripts={w='w:main'}\ndependencies=['mcp']\n";

    #[test]
    fn node_tree() {
        insta::assert_snapshot!(plain(&[
            ("package.json", TS),
            ("package-lock.json", ""),
            ("src/i.ts", ""),
            (".npmrc", "")
        ]));
    }

    #[test]
    fn node_tree_with_every_setting() {
        let files = [
            ("package.json", TS),
            ("pnpm-lock.yaml", ""),
            ("mcp.yaml", "transport: http\nport: 3000\nbuild: {packages: [git, ffmpeg], args: {MINE: x}}\n"),
        ];
        insta::assert_snapshot!(made(&files, Origin::Tree, &full()));
    }

    #[test]
    fn npm_package() {
        let origin = Origin::Npm { name: "@s/w".into(), version: "1.0.0".into() };
        insta::assert_snapshot!(made(&[("package.json", TS)], origin, &BuildSettings::default()));
    }

    #[test]
    fn python_tree() {
        insta::assert_snapshot!(plain(&[("pyproject.toml", PY), ("src/w/__init__.py", "")]));
    }

    #[test]
    fn python_tree_with_uv_and_every_setting() {
        insta::assert_snapshot!(made(&[("pyproject.toml", PY), ("uv.lock", "")], Origin::Tree, &full()));
    }

    #[test]
    fn pypi_package() {
        let origin = Origin::Pypi { name: "w[x]".into(), version: "1.0".into() };
        let files = [("w-1.0.dist-info/entry_points.txt", "[console_scripts]\nw = w:main\n")];
        insta::assert_snapshot!(made(&files, origin, &BuildSettings::default()));
    }

    #[test]
    fn go_tree() {
        insta::assert_snapshot!(plain(&[("go.mod", "module example.org/w\n"), ("go.sum", ""), ("cmd/w/main.go", "")]));
    }

    #[test]
    fn rust_tree() {
        let files = [("Cargo.toml", "[package]\nname='w'\n"), ("Cargo.lock", ""), ("src/main.rs", "")];
        insta::assert_snapshot!(made(&files, Origin::Tree, &full()));
    }

    #[test]
    fn every_dockerfile_keeps_the_promises() {
        let npm = Origin::Npm { name: "w".into(), version: "1".into() };
        let all = [
            made(&[("package.json", TS), ("yarn.lock", "")], Origin::Tree, &full()),
            made(&[("package.json", TS)], npm, &full()),
            made(&[("requirements.txt", "mcp\n"), ("server.py", "")], Origin::Tree, &full()),
            made(
                &[
                    ("pyproject.toml", "[project]\nname='w'\ndependencies=['mcp>=1; python_version > \"3\"']\n"),
                    ("server.py", ""),
                ],
                Origin::Tree,
                &full(),
            ),
            made(&[("go.mod", "module w\n"), ("main.go", "")], Origin::Tree, &full()),
            made(&[("Cargo.toml", "[package]\nname='w'\n"), ("src/main.rs", "")], Origin::Tree, &full()),
        ];
        for text in all {
            let last = text.rsplit("\nFROM ").next().unwrap();
            assert!(last.contains("USER 10001:10001\nENTRYPOINT [\""), "{text}");
            assert!(!text.contains("hunter2") && !text.contains("small") && !text.contains("ARG http_proxy"), "{text}");
            assert!(text.contains("ARG VARIANT"), "{text}");
            assert!(!text.contains("[[") && !text.contains("<<") && !text.contains("--mount"), "{text}");
            assert_eq!(text.matches("COPY .sigil/ca.crt").count(), 1, "{text}");
            assert!(last.contains("HOME=\"/home/app\""), "{text}");
        }
    }

    #[test]
    fn words_cannot_leave_their_place() {
        assert_eq!(sh("a b"), "'a b'");
        assert_eq!(sh("it's"), "'it'\\''s'");
        assert_eq!(sh("$(x)"), "'$(x)'");
        assert_eq!(bare("https://u:p@h/x@y"), "https://h/x@y");
        assert_eq!((bare("direct"), bare("https://h")), ("direct".into(), "https://h".into()));
        assert_eq!(value("a\"b$c\\\nd"), "\"a\\\"b\\$c\\\\ d\"");
    }

    #[test]
    fn a_dockerfile_of_the_tree_is_shown_as_it_is() {
        assert_eq!(plain(&[("Dockerfile", "FROM x\n")]), "FROM x\n");
    }
}
