//! `sigil init`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use sigil_core::recipe::{self, Origin, Recipe, RecipeError, Tree};
use sigil_core::scan;
use sigil_core::scan::outline::{self, Outline};

use super::fail::{DONE, Failure, Outcome, USAGE};
use super::folder::{self, Folder, Kind, Purpose};
use super::source::{self, Given};
use super::{Ctx, output, text};

/// Write an mcp.yaml for a folder, saying what was recognised
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sigil init\n  sigil init ./server --force")]
pub struct Args {
    /// The folder
    #[arg(default_value = ".")]
    dir: String,
    /// Write over an existing mcp.yaml
    #[arg(long)]
    force: bool,
}

pub fn run(ctx: &Ctx, args: Args) -> Outcome {
    let Given::Folder { root, .. } = source::parse(&args.dir)? else {
        return Err(Failure::usage(format!("'{}' is not a folder", args.dir), "name a folder of this machine"));
    };
    // both spellings are read; the one that is there is the one that is replaced
    let file = if root.join("mcp.yml").exists() { root.join("mcp.yml") } else { root.join("mcp.yaml") };
    if file.exists() && !args.force {
        let message = format!("{} exists already", file.display());
        return Err(Failure::new(USAGE, "EXISTS", message, "say --force to write over it"));
    }
    let folder = folder::walk(&root, Purpose::Build)?;
    let mut tree = folder.tree()?;
    // with --force the old manifest is what is replaced, not what is recognised
    let is_manifest = |path: &str| matches!(path, "mcp.yaml" | "mcp.yml");
    tree.files.retain(|path| !is_manifest(path));
    tree.bodies.retain(|path, _| !is_manifest(path));
    let mut recipe = recognise(&tree, None)?;
    if recipe.manifest.name.is_none() {
        recipe.manifest.name = folder_name(&root);
    }
    let outline = outline(&folder)?;
    let manifest = recipe::manifest_yaml(&recipe, &outline);
    write(&file, &manifest, args.force).map_err(|e| Failure::io(file.display(), &e))?;
    let tools: Vec<&str> = outline.tools.iter().map(|tool| tool.name.as_str()).collect();
    let secrets: Vec<&str> = outline.reads.iter().filter(|read| read.secret).map(|read| read.name.as_str()).collect();
    let told =
        json!({ "path": file, "recognised": recipe.why, "tools": tools, "secrets": secrets, "manifest": manifest });
    ctx.emit(&told, || {
        let why: String = recipe.why.iter().map(|line| format!("  {}\n", text::one_line(line))).collect();
        let found = said(&recipe, &outline);
        format!("recognised:\n{why}{found}wrote {}\n", file.display())
    })?;
    if !ctx.format.is_data() {
        output::note(&format!("next: look it over, then 'sigil deploy {}'", shell(&args.dir)));
    }
    Ok(DONE)
}

/// What the code of a folder says of tools and environment.
pub(super) fn outline(folder: &Folder) -> Result<Outline, Failure> {
    let mut files = Vec::new();
    for entry in &folder.entries {
        if matches!(entry.kind, Kind::File(length, _) if length <= scan::MAX_FILE as u64) && outline::reads(&entry.path)
        {
            files.push((entry.path.clone(), folder.read(entry)?));
        }
    }
    Ok(outline::outline(&files))
}

/// Tools and secrets that were found, a line each.
fn said(recipe: &Recipe, outline: &Outline) -> String {
    let line = |what: &str, names: Vec<&str>| {
        let names = names.into_iter().map(text::one_line).collect::<Vec<_>>().join(", ");
        if names.is_empty() { String::new() } else { format!("  {what}: {names}\n") }
    };
    let mut out = line("tools in the code", outline.tools.iter().map(|tool| tool.name.as_str()).collect());
    let secrets = outline.reads.iter().filter(|read| read.secret && !recipe.manifest.env.contains_key(&read.name));
    out.push_str(&line("secrets in the code", secrets.map(|read| read.name.as_str()).collect()));
    out
}

fn write(file: &Path, text: &str, force: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    // between the look and the write nobody's file is lost
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(file)?.write_all(text.as_bytes())
}

/// A folder as a source is written, so that it is taken for one.
pub(super) fn shell(dir: &str) -> String {
    if dir.starts_with(['.', '/', '~']) || Path::new(dir).is_absolute() { dir.to_owned() } else { format!("./{dir}") }
}

/// The deployment's name that a folder's own name gives.
pub fn folder_name(root: &Path) -> Option<String> {
    let name = root.file_name()?.to_str()?;
    sigil_core::model::Name::derive(name).map(|name| name.as_str().to_owned())
}

/// Recognises a tree; a failure names everything that is wrong.
pub fn recognise(tree: &Tree, given: Option<(&str, &str)>) -> Result<Recipe, Failure> {
    recipe::recognise(tree, Origin::Tree, given).map_err(|error| {
        let (message, hint) = (error.to_string(), error.hint());
        let (code, details) = match error {
            RecipeError::Unrecognised { looked_for } => ("UNRECOGNISED", json!({ "looked_for": looked_for })),
            RecipeError::Manifest(flaws) => ("BAD_MANIFEST", json!({ "flaws": flaws })),
            RecipeError::Escapes { what, path } => ("BAD_MANIFEST", json!({ "what": what, "path": path })),
            RecipeError::Unclear { .. } => ("UNCLEAR", json!(null)),
        };
        Failure::new(USAGE, code, message, hint).with_details(details)
    })
}
