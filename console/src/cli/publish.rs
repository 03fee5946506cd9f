//! `sigil publish`.

mod source;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};
use sigil_config::server_json;

use super::args::{env_pair, secret_pair};
use super::fail::{DONE, Failure, Outcome, USAGE};
use super::{Ctx, output, text, time};
use crate::link::{Link, PackageVersion};

/// Register a version of a server in the registry, for others to find and deploy
#[derive(Debug, clap::Args)]
#[command(
    after_help = "From a source (a folder, git, npm:, pypi:, image:) it is scanned, built and started as a deploy would, its tools are listed, and what the agent learnt goes into the registry with the scanner's verdict and its provenance; --deploy keeps it running. What is not known is asked for, or named. From a server.json (the format of MCP registries) the document is checked and registered as it is; --of takes what is known from a deployment of it. A published version never changes; the same document again is fine.\n\nExample:\n  sigil publish ./weather --name io.example/weather --version 1.0.0\n  sigil publish npm:some-server@2.1.0 --name io.example/some --description 'Does some.'\n  sigil publish ./weather --name io.example/weather --version 1.0.0 --push registry.example.org/weather:1.0.0\n  sigil publish ./server.json --category travel --tag climate\n  sigil publish ./server.json --check"
)]
pub struct Args {
    /// A source, a server.json, or a folder that has one
    #[arg(value_name = "SOURCE", default_value = ".", hide_default_value = true)]
    from: String,
    /// The package's name: NAMESPACE/NAME
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What it does, in one sentence
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// This version
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Its category
    #[arg(long, value_name = "NAME")]
    category: Option<String>,
    /// A tag (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Who wrote it (may be repeated)
    #[arg(long = "author", value_name = "NAME")]
    authors: Vec<String>,
    /// Its README; without it the README.md beside the document or in the folder
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Team that a new package belongs to; your only one when left out, else default
    #[arg(long, value_name = "TEAM", default_value = "", hide_default_value = true)]
    team: String,
    /// Push its image there, for other hosts; the package is run from it
    #[arg(long, value_name = "REF")]
    push: Option<String>,
    /// Keep it running under this name
    #[arg(long, value_name = "DEPLOYMENT", conflicts_with = "of")]
    deploy: Option<String>,
    /// Of a server.json: the deployment that runs it, for its tools, verdict and provenance
    #[arg(long, value_name = "DEPLOYMENT")]
    of: Option<String>,
    /// Environment variable that it needs to start
    #[arg(long, value_name = "K=V", value_parser = env_pair)]
    env: Vec<(String, String)>,
    /// Secret that it needs to start
    #[arg(long, value_name = "NAME[=ENV]", value_parser = secret_pair)]
    secret: Vec<(String, String)>,
    /// Host that it has to reach to start
    #[arg(long, value_name = "HOST[:PORT]")]
    egress: Vec<String>,
    /// Wait at most this long for it to start
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time::duration)]
    timeout: Duration,
    /// Of a server.json: only look for flaws
    #[arg(long)]
    check: bool,
}

fn bad(file: &Path, why: impl std::fmt::Display, hint: &str) -> Failure {
    Failure::new(USAGE, "BAD_DOCUMENT", format!("{}: {why}", file.display()), hint)
}

fn read(file: &Path, most: usize) -> Result<String, Failure> {
    let hint = "name a server.json, or a folder that has one";
    let length = std::fs::metadata(file).map_err(|e| bad(file, e, hint))?.len();
    if length > most as u64 {
        return Err(bad(file, format!("it is larger than {} KiB", most >> 10), "make it smaller"));
    }
    std::fs::read_to_string(file).map_err(|e| bad(file, e, hint))
}

/// The document that is meant, if one is.
fn document_file(args: &Args) -> Option<PathBuf> {
    let from = Path::new(&args.from);
    if args.from.ends_with(".json") {
        return Some(from.to_owned());
    }
    // who gives a name means the tree
    let inside = from.join("server.json");
    (args.name.is_none() && inside.is_file()).then_some(inside)
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    match document_file(&args) {
        Some(file) => document(ctx, args, &file).await,
        None => built(ctx, args).await,
    }
}

fn readme(args: &Args, beside: &Path) -> Result<String, Failure> {
    match &args.readme {
        Some(readme) => read(readme, server_json::DOCUMENT_MAX),
        None if beside.is_file() => read(beside, server_json::DOCUMENT_MAX),
        None => Ok(String::new()),
    }
}

fn checked(document: &Json, whose: &Path) -> Result<server_json::Server, Failure> {
    server_json::check(document).map_err(|flaws| {
        let list = flaws.iter().map(|flaw| format!("\n  {flaw}")).collect::<String>();
        bad(whose, format!("it breaks the rules of server.json:{list}"), "mend what is named and try again")
    })
}

/// A document as it is.
async fn document(ctx: &Ctx, args: Args, file: &Path) -> Outcome {
    if [&args.name, &args.description, &args.version, &args.deploy, &args.push].into_iter().any(Option::is_some) {
        let hint = "leave them out, or name the source and not its document";
        return Err(Failure::usage("--name, --description, --version, --deploy and --push are for sources", hint));
    }
    let words = read(file, server_json::DOCUMENT_MAX)?;
    let document: Json = serde_json::from_str(&words).map_err(|e| bad(file, e, "it has to be JSON"))?;
    let server = checked(&document, file)?;
    if args.check {
        let found = json!({ "name": server.name, "version": server.version, "flaws": [] });
        ctx.emit(&found, || format!("{}@{} can be published\n", text::one_line(&server.name), server.version))?;
        return Ok(DONE);
    }
    let extras = json!({
        "category": args.category.clone().unwrap_or_default(), "tags": args.tags, "authors": args.authors,
        "readme": readme(&args, &file.with_file_name("README.md"))?,
    });
    let link = ctx.link().await?;
    let of = args.of.clone().unwrap_or_default();
    let (version, again) = publish(&link, &document, &extras, &args.team, &of).await?;
    said(ctx, &version, again)
}

/// A source: deployed, described, registered.
async fn built(ctx: &Ctx, args: Args) -> Outcome {
    if args.check || args.of.is_some() {
        return Err(Failure::usage("--check and --of are for a server.json", "name one"));
    }
    let readme = readme(&args, &Path::new(&args.from).join("README.md"))?;
    let mut made = source::deploy(ctx, &args).await?;
    let published = async {
        let mut document = made.document().await?;
        checked(&document, Path::new("the package"))?;
        if let Some(reference) = &args.push {
            made.pushed(&mut document, reference, args.timeout).await?;
        }
        checked(&document, Path::new("the package"))?;
        let extras = json!({
            "category": made.known.category, "tags": made.known.tags, "authors": args.authors, "readme": readme,
        });
        publish(&made.link, &document, &extras, &args.team, &made.name).await
    };
    let published = published.await;
    made.remove(ctx, &args).await;
    let (version, again) = published?;
    said(ctx, &version, again)
}

async fn publish(
    link: &Link,
    document: &Json,
    extras: &Json,
    team: &str,
    deployment: &str,
) -> Result<(PackageVersion, bool), Failure> {
    Ok(link.publish(document, extras, team, deployment).await?)
}

fn said(ctx: &Ctx, version: &PackageVersion, again: bool) -> Outcome {
    let what = format!("{}@{}", text::one_line(&version.name), text::one_line(&version.version));
    if again && !ctx.format.is_data() {
        output::note(&format!("{what} was there already, as it is"));
    }
    ctx.emit(version, || {
        let latest = if version.latest { ", the latest version" } else { "" };
        format!("{what} is published{latest}\nnext        sigil package get {what}\n")
    })?;
    Ok(DONE)
}
