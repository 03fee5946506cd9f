//! `sigil search`.

use super::fail::{DONE, Outcome};
use super::output::{self, Cell, Paint, Table, cell};
use super::{Ctx, text};
use crate::link::{Package, PackageQuery, Packages};

/// Find packages in the registry
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Words are looked for in names, titles, descriptions, tools, tags and secrets; a wrong letter does not matter. SETUP is what has to be given before it runs: nothing, one or two values (simple), more (involved).\n\nExample:\n  sigil search weather\n  sigil search --secret OPENAI_API_KEY --sort popular\n  sigil search --tool create_issue --runtime node -o json"
)]
pub struct Args {
    /// Words; none: everything
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    /// Only of this category
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    category: String,
    /// Only with this tag (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only what this runs: node, python, container, remote, dotnet, rust, bundle
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    runtime: String,
    /// Only what speaks this
    #[arg(long, value_enum, value_name = "NAME")]
    transport: Option<Transport>,
    /// Only with a tool of this name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    tool: String,
    /// Only what asks for a secret of this name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    secret: String,
    /// Only what the scanner judged so
    #[arg(long, value_enum, value_name = "VERDICT")]
    verdict: Option<Verdict>,
    /// Only what takes so much before it runs
    #[arg(long, value_enum, value_name = "SETUP")]
    setup: Option<Setup>,
    /// Which come first
    #[arg(long, value_enum, default_value_t = Sort::Relevance, value_name = "ORDER")]
    sort: Sort,
    /// Most packages shown, up to 100
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
    /// Packages passed over, for the next ones
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    offset: u32,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Transport {
    /// A process
    Stdio,
    /// Streamable HTTP
    Http,
    /// HTTP with events
    Sse,
}

/// What the scanner said.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Verdict {
    /// Nothing
    Safe,
    /// Something to look at
    Warning,
    /// It would be stopped
    Blocked,
    /// Nobody asked it
    None,
}

/// What has to be given before it runs.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Setup {
    /// Nothing
    None,
    /// One or two values
    Simple,
    /// More
    Involved,
}

/// Which come first.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Sort {
    /// What fits best
    Relevance,
    /// What is used most
    Popular,
    /// What is used most lately
    Trending,
    /// What changed last
    Recent,
}

/// The word of a value.
fn word(value: Option<impl clap::ValueEnum>) -> String {
    value.and_then(|v| v.to_possible_value()).map(|v| v.get_name().to_owned()).unwrap_or_default()
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let query = PackageQuery {
        text: args.text.join(" "),
        category: args.category,
        tags: args.tags,
        runtime: args.runtime,
        transport: word(args.transport),
        tool: args.tool,
        secret: args.secret,
        verdict: word(args.verdict),
        setup: word(args.setup),
        sort: word(Some(args.sort)),
        limit: args.limit,
        offset: args.offset,
        ..PackageQuery::default()
    };
    let found = link.search(query).await?;
    show(ctx, &found, args.offset)?;
    Ok(DONE)
}

/// Packages as a table, or as they are.
pub(super) fn show(ctx: &Ctx, found: &Packages, offset: u32) -> Result<(), super::Failure> {
    if found.packages.is_empty() && !ctx.format.is_data() {
        output::note("no package fits");
        return Ok(());
    }
    ctx.emit(found, || table(ctx, &found.packages))?;
    let shown = u64::from(offset) + found.packages.len() as u64;
    if !ctx.format.is_data() && shown < found.total {
        output::note(&format!("{shown} of {}; --offset {shown} shows the next", found.total));
    }
    Ok(())
}

fn table(ctx: &Ctx, packages: &[Package]) -> String {
    let mut table = Table::new(&["NAME", "VERSION", "RUNS", "SETUP", "USES", "VERDICT", "DESCRIPTION"], "DESCRIPTION")
        .yielding(&["VERDICT", "USES", "SETUP", "RUNS"]);
    for p in packages {
        let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let description = if p.status == "active" {
            cell(text::one_line(&p.description))
        } else {
            let why = if p.message.is_empty() { &p.description } else { &p.message };
            cell(text::one_line(&format!("({}) {why}", p.status)))
        };
        table.row(vec![
            cell(text::one_line(&p.name)),
            cell(text::one_line(&p.latest)),
            cell(dash(text::one_line(&p.runtimes.join(",")))),
            cell(&p.setup),
            cell((p.installs + p.deploys).to_string()),
            verdict(&p.verdict),
            description,
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}

/// A verdict's cell.
pub(super) fn verdict(verdict: &str) -> Cell {
    if verdict.is_empty() { cell("-") } else { output::state(verdict) }
}

/// A heading in bold, where there is colour.
pub(super) fn heading(ctx: &Ctx, text: &str) -> String {
    output::paint(text, Paint::Bold, ctx.term.colour)
}
