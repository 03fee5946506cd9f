//! `sigil package`.

mod allow;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value as Json;

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, search, text, time};
use crate::link::{PackageDetail, PackageQuery, PackageVersion};

/// See packages of the registry, and say what they are good for
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A published version never changes, and its number is never used again. What is deprecated is still found, behind others; what is deleted is found no more, and is shown to those who ask for it.\n\nExample:\n  sigil package ls\n  sigil package get io.example/weather\n  sigil package status io.example/weather@1.0.0 deprecated --message 'use 1.1.0'\n  sigil package rm io.example/weather@0.9.0 --message 'it lost data'"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List packages that were published here
    #[command(after_help = "Example:\n  sigil package ls\n  sigil package ls --all")]
    Ls {
        /// Those of mirrored registries, too
        #[arg(long)]
        all: bool,
        /// Packages passed over, for the next ones
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        offset: u32,
    },
    /// Show a package: what it takes, its tools, its versions
    #[command(
        after_help = "Example:\n  sigil package get io.example/weather\n  sigil package get io.example/weather@1.0.0 -o json"
    )]
    Get {
        /// NAME or NAME@VERSION
        package: String,
        /// Its README, too
        #[arg(long)]
        readme: bool,
    },
    /// Say that a version, or all of them, is active, deprecated or deleted
    #[command(
        after_help = "Example:\n  sigil package status io.example/weather@1.0.0 deprecated --message 'use 1.1.0'\n  sigil package status io.example/weather active"
    )]
    Status {
        /// NAME (all versions) or NAME@VERSION
        package: String,
        /// What it is good for
        #[arg(value_enum)]
        status: Stand,
        /// Why, for those who look at it
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        message: String,
    },
    /// Say which deployments GitHub Copilot's clients may use, for managed-settings.json
    #[command(
        after_help = "Deployments become entries of allowedMcpServers, by their addresses; what is not listed is refused by Copilot's clients once the list is there. Merge it into the managed-settings.json of your enterprise.\n\nExample:\n  sigil package allow-list --url https://mcp.example.org > allowed.json\n  sigil package allow-list weather clock --stdio"
    )]
    AllowList(allow::Args),
    /// Delete a version, or all of them: nobody finds it any more
    #[command(after_help = "Example:\n  sigil package rm io.example/weather@0.9.0 --message 'it lost data'")]
    Rm {
        /// NAME (all versions) or NAME@VERSION
        package: String,
        /// Why, for those who look at it
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        message: String,
    },
}

/// What a version is good for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Stand {
    /// To be used
    Active,
    /// Still there, but there is something better
    Deprecated,
    /// Not to be used
    Deleted,
}

impl Stand {
    fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deprecated => "deprecated",
            Self::Deleted => "deleted",
        }
    }
}

/// `NAME[@VERSION]`.
fn parts(package: &str) -> (&str, &str) {
    package.split_once('@').unwrap_or((package, ""))
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    match args.verb {
        Verb::AllowList(args) => allow::run(ctx, &link, args).await?,
        Verb::Ls { all, offset } => {
            let origin = if all { String::new() } else { "own".to_owned() };
            let query = PackageQuery { origin, sort: "recent".into(), limit: 100, offset, ..PackageQuery::default() };
            let found = link.search(query).await?;
            search::show(ctx, &found, offset)?;
        }
        Verb::Get { package, readme } => {
            let (name, version) = parts(&package);
            let detail = link.package(name, version).await?;
            ctx.emit(&detail, || sheet(ctx, &detail, readme))?;
        }
        Verb::Status { package, status, message } => {
            let (name, version) = parts(&package);
            let detail = link.set_package_status(name, version, status.word(), &message).await?;
            said(ctx, &detail, version, status.word())?;
        }
        Verb::Rm { package, message } => {
            let (name, version) = parts(&package);
            let what = if version.is_empty() { format!("all versions of {name}") } else { package.clone() };
            ctx.confirm(&format!("delete {}", text::one_line(&what))).await?;
            let detail = link.set_package_status(name, version, "deleted", &message).await?;
            said(ctx, &detail, version, "deleted")?;
        }
    }
    Ok(DONE)
}

fn said(ctx: &Ctx, detail: &PackageDetail, version: &str, status: &str) -> Result<(), Failure> {
    let name = text::one_line(&detail.package.name);
    let what = if version.is_empty() { format!("all versions of {name}") } else { format!("{name}@{version}") };
    ctx.emit(detail, || format!("{} {status}\n", if version.is_empty() { what + " are" } else { what + " is" }))
}

/// Texts of a list of objects, or of texts.
fn names(list: &Json, key: &str) -> Vec<(String, String)> {
    let of = |value: &Json| match value {
        Json::String(name) => (name.clone(), String::new()),
        other => {
            let text = |key: &str| other.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
            (text(key), text("description"))
        }
    };
    list.as_array().map(|list| list.iter().map(of).collect()).unwrap_or_default()
}

fn sheet(ctx: &Ctx, detail: &PackageDetail, readme: bool) -> String {
    let (p, v) = (&detail.package, &detail.version);
    let mut out = String::new();
    let mut fact = |label: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{label:<12} {}", text::one_line(&value));
        }
    };
    fact("name", p.name.clone());
    if p.title != p.name {
        fact("title", p.title.clone());
    }
    fact("about", p.description.clone());
    fact("version", format!("{}{}", v.version, if v.latest { " (latest)" } else { "" }));
    let why = if v.message.is_empty() { String::new() } else { format!(": {}", v.message) };
    fact("status", format!("{}{why}", v.status));
    fact("category", p.category.clone());
    fact("tags", p.tags.join(", "));
    fact("authors", p.authors.join(", "));
    fact("runs", p.runtimes.join(", "));
    fact("speaks", p.transports.join(", "));
    fact("setup", p.setup.clone());
    fact("verdict", if p.verdict.is_empty() { "not scanned".into() } else { p.verdict.clone() });
    fact("origin", p.origin.clone());
    fact("team", p.team.clone());
    fact("used", format!("{} installs, {} deploys", p.installs, p.deploys));
    for key in ["repository", "websiteUrl"] {
        let value = &v.server[key];
        fact(key, value.as_str().or_else(|| value["url"].as_str()).unwrap_or_default().to_owned());
    }
    let own = v.meta.as_object().and_then(|meta| meta.iter().find(|(key, _)| key.starts_with("io.sigil.")));
    let own = own.map(|(_, value)| value.clone()).unwrap_or_default();
    for (label, list, key) in [("SECRETS", &own["secrets"], "name"), ("TOOLS", &own["tools"], "name")] {
        let all = names(list, key);
        if all.is_empty() {
            continue;
        }
        let mut table = Table::new(if label == "TOOLS" { &["TOOL", "ABOUT"] } else { &["SECRET", "ABOUT"] }, "ABOUT");
        for (name, about) in all {
            table.row(vec![cell(name), cell(about)]);
        }
        let _ = write!(out, "\n{}", table.text(ctx.width(), ctx.term.colour));
    }
    let mut table = Table::new(&["VERSION", "STATUS", "PUBLISHED", "BY", "WHY"], "WHY");
    for v in &detail.versions {
        table.row(row(v));
    }
    let _ = write!(out, "\n{}", table.text(ctx.width(), ctx.term.colour));
    if readme && let Some(words) = own["readme"].as_str() {
        let words: Vec<String> = words.lines().map(|line| text::for_terminal(line.as_bytes(), false)).collect();
        let _ = write!(out, "\n{}\n{}\n", search::heading(ctx, "README"), words.join("\n"));
    }
    out
}

fn row(v: &PackageVersion) -> Vec<output::Cell> {
    vec![
        cell(format!("{}{}", v.version, if v.latest { " *" } else { "" })),
        cell(&v.status),
        cell(time::ago(v.published_at, Timestamp::now())),
        cell(&v.published_by),
        cell(&v.message),
    ]
}
