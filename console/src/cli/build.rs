//! `sigil build`.

use std::path::PathBuf;

use serde_json::json;
use sigil_core::recipe::{self, BuildSettings};

use super::args::WaitArgs;
use super::deploy::read_manifest;
use super::fail::{DONE, Failure, Outcome};
use super::folder::{self, Purpose};
use super::source::{self, Given};
use super::{Ctx, init, output, text, wait};
use crate::link::{Change, SourceRef};

/// Make the image of a source, or print its Dockerfile
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil build ./server\n  sigil build ./server --dry-run\n  sigil build git+https://example.org/org/repo@v1.2"
)]
pub struct Args {
    /// ./dir, git+https://host/org/repo[@ref][#subdir], npm:name[@version], pypi:name[==version] or image:ref
    source: String,
    /// Print the Dockerfile, build nothing; a folder needs no agent for it
    #[arg(long)]
    dry_run: bool,
    /// A manifest instead of the source's own
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Build even when this very input has been built
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let manifest = read_manifest(args.manifest.as_deref())?;
    let given = source::parse(&args.source)?;
    let source = match given {
        Given::Folder { text, root } => {
            let folder = folder::walk(&root, Purpose::Build)?;
            let tree = folder.tree()?;
            let beside = (!manifest.text.is_empty()).then_some((manifest.name.as_str(), manifest.text.as_str()));
            let recipe = init::recognise(&tree, beside)?;
            if args.dry_run {
                let dockerfile = match &recipe.dockerfile {
                    Some(path) => own_dockerfile(&folder, path)?,
                    None => recipe::dockerfile(&recipe, &tree, &BuildSettings::default()),
                };
                return show(ctx, &recipe.why, &dockerfile);
            }
            let link = ctx.link().await?;
            let upload = folder.upload(ctx, &link, &text).await?;
            return on_agent(ctx, &link, SourceRef { text, upload: Some(upload.id) }, manifest, &args).await;
        }
        Given::Remote(text) => SourceRef { text, upload: None },
    };
    let link = ctx.link().await?;
    on_agent(ctx, &link, source, manifest, &args).await
}

fn own_dockerfile(folder: &folder::Folder, path: &str) -> Result<String, Failure> {
    let missing = || Failure::usage(format!("the Dockerfile '{path}' is not in the folder"), "check build.dockerfile");
    let entry = folder.entries.iter().find(|e| e.path == path).ok_or_else(missing)?;
    Ok(String::from_utf8_lossy(&folder.read(entry)?).into_owned())
}

fn show(ctx: &Ctx, why: &[String], dockerfile: &str) -> Outcome {
    if !ctx.format.is_data() {
        for line in why {
            output::note(&format!("recognised: {}", text::one_line(line)));
        }
    }
    ctx.emit(&json!({ "recognised": why, "dockerfile": dockerfile }), || format!("{}\n", dockerfile.trim_end()))?;
    Ok(DONE)
}

async fn on_agent(
    ctx: &Ctx,
    link: &crate::link::Link,
    source: SourceRef,
    manifest: crate::link::GivenManifest,
    args: &Args,
) -> Outcome {
    let change = Change::Build { source, manifest, dry_run: args.dry_run, force: args.force };
    let Some(operation) = wait::change(ctx, link, change, &args.wait).await? else {
        return Ok(DONE);
    };
    let result = operation.result.clone().unwrap_or_default();
    ctx.emit(&result, || {
        let word = |key: &str| result.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        if args.dry_run {
            return format!("{}\n", word("dockerfile").trim_end());
        }
        let reused = result.get("reused").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let how = if reused { "  (reused: this very input was built before)" } else { "" };
        format!("image {}{how}\n", text::one_line(word("image")))
    })?;
    Ok(DONE)
}
