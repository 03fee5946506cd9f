//! `sigil follow`.

use std::time::Duration;

use jiff::Timestamp;

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::follows::{Follow, Wish};

/// Have a server be what its git branch is: deploy what is pushed
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sigil deploy git+https://git.example.org/acme/time@main --name time\n  sigil follow set time --every 5m      # looks at the repository\n  sigil follow set time --webhook       # is told by the forge, signed\n  sigil follow ls\n  sigil guide follow"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Follow the branch that it was deployed from; what was wished for before is replaced
    #[command(
        after_help = "Each deploy asks for the same as the last one did (name, environment, tier, manifest …).\n\nExample:\n  sigil follow set time --every 5m\n  sigil follow set time --webhook --path 'server/**' --path mcp.yaml\n  sigil follow set time --webhook --branch main --branch 'release/*'\n  sigil follow set time --webhook --previews"
    )]
    Set {
        /// The deployment
        name: String,
        /// Look at the repository so often (30s to 24h)
        #[arg(long, value_name = "TIME", value_parser = time::duration)]
        every: Option<Duration>,
        /// Listen to signed pushes at /hooks/NAME on the gateway's address
        #[arg(long)]
        webhook: bool,
        /// Only pushes that touch such files count (a glob from the repository's root; again for more)
        #[arg(long = "path", value_name = "GLOB")]
        paths: Vec<String>,
        /// Only pushes to such branches count, and what was pushed last is deployed (a glob; again for more)
        #[arg(long = "branch", value_name = "GLOB")]
        branches: Vec<String>,
        /// A deployment of its own for each pull request to that branch: NAME-pr-7, removed when it is closed
        #[arg(long, requires = "webhook")]
        previews: bool,
        /// So many previews at once
        #[arg(long, value_name = "N", requires = "previews", default_value_t = 5)]
        previews_max: u32,
        /// Build and run pull requests from forks, too: code of strangers (see 'sigil guide github')
        #[arg(long, requires = "previews")]
        previews_forks: bool,
        /// Make a new secret for signatures; the old one is refused from then on
        #[arg(long, requires = "webhook")]
        new_secret: bool,
    },
    /// List what follows a repository, and what came of it
    #[command(after_help = "Example:\n  sigil follow ls")]
    Ls,
    /// Show what one follows
    #[command(after_help = "Example:\n  sigil follow get time")]
    Get {
        /// The deployment
        name: String,
    },
    /// Look at the repository now, and deploy what is newest there
    #[command(after_help = "Example:\n  sigil follow now time")]
    Now {
        /// The deployment
        name: String,
    },
    /// Follow nothing from now on; what runs stays
    #[command(after_help = "Example:\n  sigil follow rm time")]
    Rm {
        /// The deployment
        name: String,
    },
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let one = match args.verb {
        Verb::Ls => {
            let all = link.follows(None).await?;
            if all.is_empty() && !ctx.format.is_data() {
                output::note("nothing follows a repository; sigil follow set NAME --every 5m");
                return Ok(DONE);
            }
            ctx.emit(&all, || table(ctx, &all))?;
            return Ok(DONE);
        }
        Verb::Set { every, webhook, paths, branches, previews, previews_max, previews_forks, new_secret, name } => {
            if every.is_none() && !webhook {
                return Err(Failure::usage(
                    "neither looking nor listening is asked for",
                    "give --every 5m, --webhook, or both",
                ));
            }
            let every_seconds = every.map_or(0, |every| u32::try_from(every.as_secs().max(1)).unwrap_or(u32::MAX));
            let previews = previews.then_some(previews_max);
            let wish = Wish { every_seconds, webhook, paths, new_secret, branches, previews, previews_forks };
            link.set_follow(&name, Some(wish)).await?
        }
        Verb::Get { name } => {
            let mut found = link.follows(Some(&name)).await?;
            found.pop().ok_or_else(|| Failure::usage("the agent answered nothing", "is it of another version?"))?
        }
        Verb::Now { name } => {
            let one = link.look_at_repository(&name).await?;
            if !ctx.format.is_data() {
                output::note(&format!(
                    "the repository of '{name}' is looked at; sigil follow get {name} shows what came of it"
                ));
            }
            one
        }
        Verb::Rm { name } => link.set_follow(&name, None).await?,
    };
    let gateway = if one.webhook { link.info().await?.gateway } else { String::new() };
    ctx.emit(&one, || shown(&one, &gateway))?;
    Ok(DONE)
}

fn how(follow: &Follow) -> String {
    let look = (follow.every_seconds > 0)
        .then(|| format!("looks every {}", time::span(Duration::from_secs(follow.every_seconds.into()))));
    let told = follow.webhook.then(|| "listens to pushes".to_owned());
    look.into_iter().chain(told).collect::<Vec<_>>().join(", ")
}

fn branch(follow: &Follow) -> &str {
    if follow.branch.is_empty() { "(default)" } else { &follow.branch }
}

fn shown(follow: &Follow, gateway: &str) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("{name:<12} {}", text::one_line(value)));
        }
    };
    field("deployment", &follow.name);
    field("repository", &follow.repository);
    if !follow.follows {
        field("follows", "nothing");
        field("trouble", &follow.trouble);
        return lines.join("\n") + "\n";
    }
    let now = Timestamp::now();
    match follow.branches.is_empty() {
        true => field("branch", branch(follow)),
        false => field("branches", &follow.branches.join(" ")),
    }
    field("how", &how(follow));
    field("files", &follow.paths.join(" "));
    field("wanted by", &follow.by);
    field("commit", &follow.commit);
    if follow.last_at.is_some() {
        field("last", &format!("{} ({})", follow.last, time::ago(follow.last_at, now)));
    }
    if follow.pushed_at.is_some() {
        field("last push", &time::ago(follow.pushed_at, now));
    }
    field("trouble", &follow.trouble);
    field("statuses", &follow.status_trouble);
    if let Some(max) = follow.previews_max {
        let forks = if follow.previews_forks { ", also of forks" } else { "" };
        field("previews", &format!("at most {max}{forks}"));
    }
    for one in &follow.requests {
        let place = if one.deployment.is_empty() { "no preview" } else { &one.deployment };
        let fork = if one.fork { ", from a fork" } else { "" };
        let last = if one.last.is_empty() { "it is looked at" } else { &one.last };
        field("", &format!("#{} {place}{fork}: {last}", one.number));
    }
    if follow.webhook {
        field("webhook", &format!("{}{}", gateway.trim_end_matches('/'), follow.hook_path));
    }
    if !follow.secret.is_empty() {
        field("secret", &follow.secret);
        lines.push(String::new());
        lines.push(format!(
            "Give both to the forge: content type application/json, {}. The secret is shown this once.",
            if follow.previews_max.is_some() { "events push and pull request" } else { "event push" }
        ));
    }
    lines.join("\n") + "\n"
}

fn table(ctx: &Ctx, all: &[Follow]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["NAME", "BRANCH", "HOW", "COMMIT", "LOOKED", "LAST"], "LAST");
    for follow in all {
        table.row(vec![
            cell(text::one_line(&follow.name)),
            cell(text::one_line(branch(follow))),
            cell(how(follow)),
            cell(follow.commit.get(..8).unwrap_or("-")),
            cell(time::ago(follow.last_at, now)),
            cell(text::one_line(if follow.trouble.is_empty() { &follow.last } else { &follow.trouble })),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
