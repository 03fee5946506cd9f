//! `sigil quota`.

use super::fail::{DONE, Failure, Outcome};
use super::output::{self, Table, cell};
use super::{Ctx, text, time};
use crate::link::{Limit, NewLimit};

/// Set, list and remove what users, teams and deployments may use
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A quota is for all, team:NAME, user:NAME or deployment:NAME. Deployments and memory count when something is deployed, scaled or started; requests and egress count by the month (UTC), and whoever has used them up is refused, and told why. A user's requests are those of the user's keys. A deployment without a quota of its own has its tier's ([quota] action says what becomes of that).\n\nExample:\n  sigil quota set team:search --deployments 10 --memory 4GiB\n  sigil quota set user:ada --requests 50000 --egress 5GB\n  sigil quota ls\n  sigil quota rm user:ada"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Set the most of something; what is not given stays as it is
    #[command(after_help = "Example:\n  sigil quota set user:ada --requests 50000")]
    Set {
        /// all, team:NAME, user:NAME or deployment:NAME
        whose: String,
        /// Most deployments
        #[arg(long, value_name = "N")]
        deployments: Option<u64>,
        /// Most memory of everything that is to run
        #[arg(long, value_name = "SIZE", value_parser = size)]
        memory: Option<u64>,
        /// Requests a month
        #[arg(long, value_name = "N")]
        requests: Option<u64>,
        /// What may leave a month
        #[arg(long, value_name = "SIZE", value_parser = size)]
        egress: Option<u64>,
    },
    /// List them
    #[command(after_help = "Example:\n  sigil quota ls")]
    Ls,
    /// Take somebody's quotas away
    #[command(after_help = "Example:\n  sigil quota rm user:ada")]
    Rm {
        /// Whose
        whose: String,
    },
}

fn size(text: &str) -> Result<u64, String> {
    sigil_config::size::bytes(text).ok_or_else(|| format!("'{text}' is no size; write 512MiB or 5GB"))
}

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let link = ctx.link().await?;
    let all = match args.verb {
        Verb::Set { whose, deployments, memory, requests, egress } => {
            if [deployments, memory, requests, egress].iter().all(Option::is_none) {
                return Err(Failure::usage(
                    "nothing is to be set",
                    "give --deployments, --memory, --requests or --egress",
                ));
            }
            let new =
                NewLimit { deployments, memory_bytes: memory, requests, egress_bytes: egress, ..NewLimit::default() };
            link.set_limit(&whose, new).await?
        }
        Verb::Ls => link.limits().await?,
        Verb::Rm { whose } => link.remove_limit(&whose, true, false).await?,
    };
    let quotas: Vec<&Limit> = all.iter().filter(|limit| limit.has_quota()).collect();
    if quotas.is_empty() && !ctx.format.is_data() {
        output::note("no quota is set");
        return Ok(DONE);
    }
    ctx.emit(&quotas, || table(ctx, &quotas))?;
    Ok(DONE)
}

fn table(ctx: &Ctx, all: &[&Limit]) -> String {
    let mut table = Table::new(&["WHOSE", "DEPLOYMENTS", "MEMORY", "REQUESTS", "EGRESS", "BY"], "WHOSE");
    let dash = || "-".to_owned();
    for limit in all {
        table.row(vec![
            cell(text::one_line(&limit.whose)),
            cell(limit.deployments.map_or_else(dash, |n| n.to_string())),
            cell(limit.memory_bytes.map_or_else(dash, time::size)),
            cell(limit.requests.map_or_else(dash, |n| n.to_string())),
            cell(limit.egress_bytes.map_or_else(dash, time::size)),
            cell(text::one_line(&limit.by)),
        ]);
    }
    table.text(ctx.width(), ctx.term.colour)
}
