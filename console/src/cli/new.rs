//! `sigil new`: a server to begin with, in the language of one's choice. Its files are under `new/`, with words that are
//! replaced; it builds, answers two tools and passes the scanner as it is.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;
use sigil_core::model::Name;
use sigil_core::recipe::{self, Tree};
use sigil_core::scan::outline;

use super::fail::{DONE, Failure, Outcome, USAGE};
use super::{Ctx, init, output};

/// Begin a server of your own: a folder that builds, runs and passes the scanner as it is
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil new weather\n  sigil new weather --language typescript --description 'Tells the weather'"
)]
pub struct Args {
    /// Its name
    name: String,
    /// What it is written in
    #[arg(long, short, value_enum, default_value_t = Language::Python)]
    language: Language,
    /// One sentence
    #[arg(long, default_value = "Greets and adds.")]
    description: String,
    /// The folder; without it a new one of the server's name
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What a server can be begun in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    /// The official SDK's `FastMCP`
    Python,
    /// The official SDK
    Typescript,
    /// Without dependencies
    Go,
    /// The official SDK, rmcp
    Rust,
}

/// Path and text of a file.
type Template = (&'static str, &'static str);

const PYTHON: &[Template] = &[
    ("server.py", include_str!("../new/python/server.py")),
    ("requirements.txt", include_str!("../new/python/requirements.txt")),
    (".gitignore", ".env\n.venv/\n__pycache__/\n"),
];
const TYPESCRIPT: &[Template] = &[
    ("src/index.ts", include_str!("../new/typescript/src/index.ts")),
    ("package.json", include_str!("../new/typescript/package.json")),
    ("package-lock.json", include_str!("../new/typescript/package-lock.json")),
    ("tsconfig.json", include_str!("../new/typescript/tsconfig.json")),
    (".gitignore", ".env\ndist/\nnode_modules/\n"),
];
const GO: &[Template] = &[
    ("main.go", include_str!("../new/go/main.go")),
    ("go.mod", include_str!("../new/go/go.mod.in")),
    (".gitignore", ".env\n"),
];
const RUST: &[Template] = &[
    ("src/main.rs", include_str!("../new/rust/src/main.rs")),
    ("Cargo.toml", include_str!("../new/rust/Cargo.toml.in")),
    ("Cargo.lock", include_str!("../new/rust/Cargo.lock")),
    (".gitignore", ".env\ntarget/\n"),
];

pub fn run(ctx: &Ctx, args: &Args) -> Outcome {
    let name = args.name.parse::<Name>().map_err(|e| Failure::usage(e.to_string(), "such as: sigil new weather"))?;
    let files = files(&name, args.language, &args.description)?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    let failed = |path: &Path, e: &std::io::Error| Failure::io(path.display(), e);
    match std::fs::read_dir(&dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            let message = format!("the folder {} is not empty", dir.display());
            return Err(Failure::new(USAGE, "EXISTS", message, "name another with --dir; nothing was written"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(&dir, &e)),
    }
    for (path, text) in &files {
        let path = dir.join(path);
        let folder = path.parent().unwrap_or(&dir);
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        std::fs::write(&path, text).map_err(|e| failed(&path, &e))?;
    }
    let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    ctx.emit(&json!({ "path": dir, "files": paths }), || format!("wrote {} in {}\n", paths.join(", "), dir.display()))?;
    if !ctx.format.is_data() {
        output::note(&format!(
            "next: sigil deploy {}, then 'sigil tools {name}'; 'sigil guide first-server' goes on from there",
            init::shell(&dir.display().to_string())
        ));
    }
    Ok(DONE)
}

/// All files of a new server, the manifest last.
fn files(name: &Name, language: Language, description: &str) -> Result<Vec<(String, String)>, Failure> {
    // it is put into strings and comments of every language
    if description.is_empty()
        || description.len() > 200
        || description.contains(['"', '\\', '`', '*'])
        || description.contains(char::is_control)
    {
        return Err(Failure::usage(
            "a description is one plain sentence",
            "leave out quotes, backslashes and line ends",
        ));
    }
    if language == Language::Rust && name.as_str().starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Failure::usage("a Rust package begins with a letter", "name it otherwise"));
    }
    let templates = match language {
        Language::Python => PYTHON,
        Language::Typescript => TYPESCRIPT,
        Language::Go => GO,
        Language::Rust => RUST,
    };
    let mut files: Vec<(String, String)> = templates
        .iter()
        .map(|(path, text)| {
            let text = text.replace("DESCRIPTION", description).replace("NAME", name.as_str());
            ((*path).to_owned(), if *path == "Cargo.lock" { sorted(&text) } else { text })
        })
        .collect();
    files.sort();
    let manifest = manifest(name, description, &files)?;
    files.push(("mcp.yaml".to_owned(), manifest));
    Ok(files)
}

/// Cargo keeps a lock file's packages by name, and refuses another order where it may not write: the new one's has its own place.
fn sorted(lock: &str) -> String {
    let name =
        |block: &&str| block.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default().to_owned();
    let mut blocks: Vec<&str> = lock.trim_end().split("\n\n").collect();
    // stable: versions of one package stay in their order, and what is no package in front
    blocks.sort_by_key(name);
    format!("{}\n", blocks.join("\n\n"))
}

/// The manifest that `sigil init` would propose, with what is known here.
fn manifest(name: &Name, description: &str, files: &[(String, String)]) -> Result<String, Failure> {
    let mut tree = Tree { files: files.iter().map(|(path, _)| path.clone()).collect(), ..Tree::default() };
    tree.bodies = files
        .iter()
        .filter(|(path, _)| Tree::wanted(path))
        .map(|(path, text)| (path.clone(), text.clone().into_bytes()))
        .collect();
    let mut recipe = init::recognise(&tree, None)?;
    recipe.manifest.name = Some(name.as_str().to_owned());
    recipe.manifest.description = Some(description.to_owned());
    recipe.manifest.version = Some("0.1.0".to_owned());
    recipe.transport = Some("stdio".to_owned());
    Ok(recipe::manifest_yaml(&recipe, &outline::outline(files)))
}

#[cfg(test)]
mod tests {
    use sigil_core::scan::{self, Verdict};

    use super::*;

    fn made(language: Language) -> Vec<(String, String)> {
        files(&"my-server".parse().unwrap(), language, "Says what it does, plainly.").unwrap()
    }

    #[test]
    fn every_language_passes_the_scanner_and_is_recognised() {
        let all = [
            (Language::Python, "python", "server.py"),
            (Language::Typescript, "node", "dist/index.js"),
            (Language::Go, "go", "/server"),
            (Language::Rust, "rust", "/server"),
        ];
        for (language, runtime, starts) in all {
            let files = made(language);
            let report = scan::scan(&files);
            assert_eq!((report.verdict, &report.findings), (Verdict::Safe, &Vec::new()), "{language:?}");
            let mut tree = Tree { files: files.iter().map(|(path, _)| path.clone()).collect(), ..Tree::default() };
            tree.bodies = files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())).collect();
            let recipe = init::recognise(&tree, None).unwrap();
            assert_eq!(
                (recipe.runtime.as_str(), recipe.transport.as_deref()),
                (runtime, Some("stdio")),
                "{language:?}"
            );
            assert!(recipe.command.iter().any(|word| word.ends_with(starts)), "{:?}", recipe.command);
            let tools: Vec<&str> = recipe.manifest.tools.iter().map(|tool| tool.name.as_str()).collect();
            assert_eq!(tools, ["greet", "add"], "{language:?}");
            assert!(recipe.manifest.tools.iter().all(|tool| !tool.description.is_empty()), "{language:?}");
            assert_eq!(recipe.manifest.name.as_deref(), Some("my-server"));
            for (path, text) in &files {
                assert!(!text.contains("NAME") && !text.contains("DESCRIPTION"), "{path}");
            }
        }
    }

    #[test]
    fn a_lock_file_keeps_its_order() {
        let files = made(Language::Rust);
        let lock = &files.iter().find(|(path, _)| path == "Cargo.lock").unwrap().1;
        let names: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
        assert!(names.is_sorted() && names.contains(&"\"my-server\""), "{names:?}");
        assert!(
            lock.starts_with("# This file") && lock.contains("\nversion = 4\n\n[[package]]\nname = "),
            "{}",
            &lock[..200]
        );
    }

    #[test]
    fn words_that_would_break_a_file_are_refused() {
        let name = "x".parse().unwrap();
        for description in ["", "a \"b\"", "a\nb", "\"\"\"", "*/", "`x`", "a\\"] {
            assert!(files(&name, Language::Python, description).is_err(), "{description:?}");
        }
        assert!(files(&"7up".parse().unwrap(), Language::Rust, "x").is_err());
    }
}
